import sys

from gebm.cli import main

sys.exit(main())
