"""A read-only dashboard over a study database: pages that follow a study while it runs, and the JSON behind them.

`app` holds the routes, `security` the access control, `reading` cached reads of the database, `pages` and `records` the
content, `server` the command.
"""
