"""`python -m stfm_pipeline` is `stfm`."""

from stfm_pipeline.cli import main

main()
