"""Captions written by models: captioners of several makes (`captioner.py` says what they share), the job that runs one
over a whole source and survives kills (`job.py`), and its files, read by the sources of pictures (`store.py`)."""
