import sys

from jaxdti.cli.main import main

sys.exit(main())
