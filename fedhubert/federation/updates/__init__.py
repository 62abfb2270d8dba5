"""Update vectors: their exact sum, codecs, clipping and sketches. Tensors only."""
