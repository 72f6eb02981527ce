"""`python -m mirabelle`, as launchers of several processes call it: `torchrun -m mirabelle run recipe.toml`."""

from mirabelle.cli.entry import main

if __name__ == "__main__":
    main()
