"""Nearness: which pictures are copies of each other, by their perceptual hashes, in Postgres."""

# Two pictures are near when their 64-bit dHashes differ in at most this many bits. Re-encoding
# and resizing change up to 3; unrelated photographs differ in 14 or more.
NEAR_BITS = 3

# The first bit of each of the four bands of 16 bits into which a hash is cut. A pair within 3 bits
# agrees in at least one whole band, so four look-ups in an index find every neighbour.
BANDS = (48, 32, 16, 0)


def near(columns: str, seeking: str, stored: str) -> str:
    """SQL for the near pairs of the tables `seeking` (as n) and `stored` (as s), mirrored too.

    columns: what to select of n and s. n needs dhash and dhash_mirror, s needs dhash; a picture
    without a hash is near nothing. All three are names of ours, never input.
    """
    return " UNION ".join(
        f"""
        SELECT {columns} FROM {seeking} n JOIN {stored} s
          ON ((s.dhash >> {shift}) & 65535) = ((n.{column} >> {shift}) & 65535)
        WHERE bit_count((s.dhash # n.{column})::bit(64)) <= {NEAR_BITS}
        """  # noqa: S608  (names of our own)
        for column in ("dhash", "dhash_mirror")
        for shift in BANDS
    )
