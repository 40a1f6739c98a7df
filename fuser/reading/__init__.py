"""How values are read: axes with identity, views seen through, repeats, softmaxes; nothing here knows attention."""
