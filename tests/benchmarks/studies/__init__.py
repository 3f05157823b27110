"""What seq2seq_studies.py is made of: small trainings, speed, scores, and how they are told."""
