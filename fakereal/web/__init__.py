"""The web app: a page for people and an API for programs, on one predictor that `create_app` is given."""
