"""PoisonRec: an LSTM policy that walks a tree of items, trained with PPO."""
