"""The live driver of core: requests and workers' facts in, core's commands carried out, answers back."""
