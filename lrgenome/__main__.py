"""`python -m lrgenome` is the `lrgenome` command."""

from lrgenome.cli.app import main

if __name__ == "__main__":
    main()
