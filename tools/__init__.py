"""Commands for people: preparing data, the demo, studies, packages. No bundle needs them, and no archive has them."""
