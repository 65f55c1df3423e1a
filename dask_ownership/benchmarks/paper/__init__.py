"""The experiments of the paper (Wang et al., NSDI 2021), at the size of the machine they run on."""
