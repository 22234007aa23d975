"""The run's report: one self-contained HTML page. Import `data`, `plots` and `page` as needed; plots load matplotlib."""
