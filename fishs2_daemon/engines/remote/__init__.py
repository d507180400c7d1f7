"""OpenAI-style speech servers as the engine: one or many, on machines that have what this one lacks.

engine ── phrases ── what is asked in one go                  ahead    what has come before it was wanted
  │
choice ── upstream ── client ── body, sse                     breaker  whether a server is asked at all
             │                                                errors   what is wrong, in its words and ours
          request, clips, listing                             what it is asked, and how it wants to be asked
"""
