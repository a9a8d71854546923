"""Web app: a page for people and a JSON API for programs, around a predictor that `create_app` is given."""
