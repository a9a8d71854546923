"""Clean labeled folders by prediction JSONs: plan, votes, journal, transfer."""
