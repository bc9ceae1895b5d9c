"""`rela export`: a run's backbone for other libraries, with its preprocessing and a model card."""
