"""``python -m toastlib.cli``, where ``toast`` is not installed."""

from toastlib.cli import main

raise SystemExit(main())
