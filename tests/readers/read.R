# Reads one dataset with hdf5r, and prints its version, the extents and the values: read.R FILE DATASET
suppressPackageStartupMessages(library(hdf5r))
given <- commandArgs(TRUE)
file <- H5File$new(given[1], "r")
listed <- file$ls(recursive = TRUE)$name
cat(as.character(packageVersion("hdf5r")), "\n")
cat(file[[given[2]]]$dims, "\n")
cat(as.vector(file[[given[2]]]$read()), "\n")
