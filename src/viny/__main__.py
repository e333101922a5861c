import sys

from viny.cli import Log, main

if __name__ == "__main__":
    sys.stdout, sys.stderr = Log(sys.stdout), Log(sys.stderr)
    raise SystemExit(main())
