from viny.cli import main
from viny.runtime.signals import end

if __name__ == "__main__":
    end(main())
