"""What a run leaves for people and programs: results.json, the sentences of the terminal, the model card."""
