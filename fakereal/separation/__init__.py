"""Clean labelled folders by prediction JSONs: plan, votes, journal, transfer."""
