"""The ports that the loop drives: one file for each part outside, and one for the errors that adapters may raise.

An adapter implements one Protocol and passes its contract tests; so does the fake that the crash matrix uses. Every
method has its own deadline inside the adapter. Every method may be repeated: after a crash nobody knows whether it ran.
"""
