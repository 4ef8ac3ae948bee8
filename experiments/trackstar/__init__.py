"""Does TrackStar find the sentences that a language model's facts come from, and those that teach it more of them?"""
