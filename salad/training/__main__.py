"""What an engine starts: see `salad.training`."""

import sys

from salad.training.command import main

sys.exit(main())
