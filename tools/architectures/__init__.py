"""A sweep over every model type of transformers: a tiny model of each, through everything that a person does with it.

`catalogue` says which types there are, `shrink` makes a configuration small, `build` makes the model, `steps` says what
is done with it and what must hold, `sweep` runs the types in processes of their own, and `page` writes what was found.
"""
