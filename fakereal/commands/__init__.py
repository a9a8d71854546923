"""The sub-commands of `python -m fakereal`: a module each, with `add_arguments(options)` and `run(arguments)`."""
