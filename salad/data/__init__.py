"""Speech data: corpora, interleaved sequences, batches."""
