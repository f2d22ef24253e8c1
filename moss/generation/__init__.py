"""From a trained model to audio: the one sampler, one decode loop per architecture, and the engine around them."""
