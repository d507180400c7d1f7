"""The engine for those who have libs2: s2.cpp's shared library, through its C interface."""
