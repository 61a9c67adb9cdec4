"""Sizes that the network, the data set and the checkpoints agree on. Needs no Jittor, so every module may import it."""

# Height and width (pixels) at which image features meet the text: the guidance stages resize to it, and training
# images are brought to it (film.md, sections 1 and 4).
STAGE_SIZE = (288, 384)

# Positions and width of a text feature: paragraphs are padded or cut to 149 tokens of a 768-wide encoder.
TEXT_SHAPE = (149, 768)
