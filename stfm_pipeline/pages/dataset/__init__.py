"""One dataset as one self-contained HTML page, and its numbers for programs."""

from stfm_pipeline.pages.dataset.page import Page as Page
from stfm_pipeline.pages.dataset.page import dataset_page as dataset_page
