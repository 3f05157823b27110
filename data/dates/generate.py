"""Write pairs of a small task that an encoder-decoder can learn to the letter: dates, copy, reverse or sort.

python data/dates/generate.py dates --rows 20000 --seed 1 --output dates.train.jsonl
"""

import argparse
import datetime
import json
import random
from pathlib import Path

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WORDS = tuple(f"{a}{b}{c}" for a in "bdkmt" for b in "aeio" for c in "lnr")  # 60 words


def date(draw: random.Random) -> tuple[str, str]:
    """Return a date as people write it and as ISO 8601 does."""
    day = datetime.date(1900, 1, 1) + datetime.timedelta(days=draw.randrange(55_000))
    month = MONTHS[day.month - 1]
    forms = (
        f"{day.day} {month} {day.year}",
        f"{month} {day.day}, {day.year}",
        f"{DAYS[day.weekday()]}, {day.day} {month} {day.year}",
        f"{day.day:02}/{day.month:02}/{day.year}",
        f"{day.day}.{day.month}.{day.year}",
        f"{month[:3]} {day.day} {day.year}",
        f"{month[:3].upper()} {day.day:02} {day.year}",
        f"the {day.day}{ordinal(day.day)} of {month} {day.year}",
        f"{day.year}, {month} {day.day}",
    )
    return draw.choice(forms), day.isoformat()


def ordinal(day: int) -> str:
    """Return the ending of an ordinal number."""
    return "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


def words(task: str, longest: int, draw: random.Random) -> tuple[str, str]:
    """Return 3 to `longest` words and the same copied, reversed or sorted."""
    row = [draw.choice(WORDS) for _ in range(draw.randint(3, longest))]
    changed = {"copy": row, "reverse": row[::-1], "sort": sorted(row)}[task]
    return " ".join(row), " ".join(changed)


def main() -> None:
    """Write the rows as JSON Lines with source and target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["dates", "copy", "reverse", "sort"])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--longest", type=int, default=14, help="most words of a row; dates do not use it")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with given.output.open("w", encoding="utf-8") as stream:
        for _ in range(given.rows):
            source, target = date(draw) if given.task == "dates" else words(given.task, given.longest, draw)
            stream.write(json.dumps({"source": source, "target": target}) + "\n")


if __name__ == "__main__":
    main()
