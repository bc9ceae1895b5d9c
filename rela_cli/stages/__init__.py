"""The four verbs: extract, transport, train, probe. Each turns inputs into one artifact; none imports another."""
