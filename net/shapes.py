"""Sizes that the network, the data set and the checkpoints agree on. Needs no Jittor, so every module may import it."""

# Height and width (pixels) at which text guides the image features: the guidance stages resize features to it, and
# training images are resized to it (film.md, sections 1 and 4).
STAGE_SIZE = (288, 384)

# Positions and width of a text feature: a paragraph is padded or cut to 149 tokens, each encoded as 768 numbers.
TEXT_SHAPE = (149, 768)
