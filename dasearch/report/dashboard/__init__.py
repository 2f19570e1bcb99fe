"""A read-only dashboard over a study database: pages that follow a study while it runs, and the JSON behind them.

`app` holds the routes, `security` who may ask, `reading` what is read of the database and when, `pages` and `records` what
is said, `server` the command.
"""
