"""Arguments of calls: kinds of objects with parts, objects that no program reads, differences of calls."""
