"""History: what people ask of versions and of use, as views, and a role that reads them alone.

Revision ID: 0017
Revises: 0016
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

# Names are those of today; `called` is what the row was stored under, and has the index.
VIEWS = {
    "class_names": "SELECT name, today AS class_name FROM class_names",
    "known_classes": """
        SELECT v.id AS version_id, coalesce(n.today, c.name) AS class_name, c.name AS called
        FROM versions v CROSS JOIN unnest(v.class_names) c (name)
        LEFT JOIN class_names n ON n.name = c.name
    """,
    # --- what was measured of versions ----------------------------------------------------------
    "accuracy": """
        SELECT e.version_id, v.purpose, v.trained_at, e.subject, e.benchmark_version, e.batch_id,
               e.created_at AS evaluated_at, e.images, e.accuracy, e.accuracy_low, e.accuracy_high,
               e.top5_accuracy, e.mean_recall, e.mean_f1, e.loss, e.calibration_error,
               e.calibration_by_chance, d.first_live
        FROM evaluations e JOIN versions v ON v.id = e.version_id
        LEFT JOIN (SELECT version_id, min(deployed_at) AS first_live FROM deployments
                   GROUP BY version_id) d ON d.version_id = e.version_id
    """,
    "classes": """
        SELECT e.version_id, e.subject, e.benchmark_version, e.batch_id,
               e.created_at AS evaluated_at, coalesce(n.today, c.class_name) AS class_name,
               c.class_name AS called, c.images, c.correct, c.predicted,
               c.recall, c.recall_low, c.recall_high,
               c.precision, c.precision_low, c.precision_high, c.f1, c.f1_low, c.f1_high
        FROM evaluations e JOIN evaluation_classes c ON c.evaluation_id = e.id
        LEFT JOIN class_names n ON n.name = c.class_name
    """,
    "bands": """
        SELECT e.version_id, e.subject, e.benchmark_version, e.batch_id,
               e.created_at AS evaluated_at, b.low, b.high, b.images, b.confidence,
               b.accuracy, b.accuracy_low, b.accuracy_high
        FROM evaluations e JOIN reliability_bins b ON b.evaluation_id = e.id
    """,
    "origins": """
        SELECT e.version_id, e.subject, e.batch_id, e.created_at AS evaluated_at, g.origin,
               g.images, g.correct, g.correct::double precision / g.images AS accuracy,
               i.low AS accuracy_low, i.high AS accuracy_high
        FROM evaluations e JOIN evaluation_origins g ON g.evaluation_id = e.id
        CROSS JOIN LATERAL history.wilson(g.correct::double precision / g.images, g.images) i
    """,
    "sub_classes": """
        SELECT e.version_id, e.subject, e.batch_id, e.created_at AS evaluated_at,
               coalesce(n.today, g.class_name) AS class_name, g.class_name AS called, g.sub_class,
               g.origin, g.images, g.correct, g.correct::double precision / g.images AS recall,
               i.low AS recall_low, i.high AS recall_high
        FROM evaluations e JOIN evaluation_groups g ON g.evaluation_id = e.id
        LEFT JOIN class_names n ON n.name = g.class_name
        CROSS JOIN LATERAL history.wilson(g.correct::double precision / g.images, g.images) i
    """,
    "thresholds": """
        SELECT t.version_id, t.wished, t.subject, t.benchmark_version, t.confidence, t.precision,
               t.precision_low, t.precision_high, t.answered, t.images, t.fitted_at,
               t.answered::double precision / nullif(t.images, 0) AS coverage,
               u.shown::double precision / nullif(u.transactions, 0) AS shown_in_use
        FROM thresholds t
        LEFT JOIN (SELECT version_id, sum(shown) AS shown, sum(transactions) AS transactions
                   FROM usage_days GROUP BY version_id) u ON u.version_id = t.version_id
    """,
    # --- two versions on the same images --------------------------------------------------------
    # Images of classes that both know, by the newest answers of each: ask for two versions. OFFSET 0:
    # or every answer that is kept would be read to find those of one evaluation.
    "paired": """
        WITH newest AS NOT MATERIALIZED (
            SELECT DISTINCT ON (version_id, subject, batch_id) version_id, subject, batch_id, id
            FROM evaluations ORDER BY version_id, subject, batch_id, benchmark_version DESC, id DESC)
        SELECT e.version_id, o.version_id AS other_id, e.subject, e.batch_id, p.sha256,
               coalesce(n.today, p.label) AS class_name, p.correct, p.other_correct,
               p.predicted, p.confidence, p.other_predicted, p.other_confidence
        FROM newest e
        JOIN newest o ON o.subject = e.subject AND o.batch_id IS NOT DISTINCT FROM e.batch_id
        CROSS JOIN LATERAL (
            SELECT sha256, a.label, b.label AS other_label, a.correct, b.correct AS other_correct,
                   a.predicted, a.confidence, b.predicted AS other_predicted,
                   b.confidence AS other_confidence
            FROM answers a JOIN answers b USING (sha256)
            WHERE a.evaluation_id = e.id AND b.evaluation_id = o.id OFFSET 0) p
        LEFT JOIN class_names n ON n.name = p.label
        LEFT JOIN class_names m ON m.name = p.other_label
        WHERE coalesce(n.today, p.label) = coalesce(m.today, p.other_label)
          AND EXISTS (SELECT FROM history.known_classes k WHERE k.version_id = e.version_id
                      AND k.class_name = coalesce(n.today, p.label))
          AND EXISTS (SELECT FROM history.known_classes k WHERE k.version_id = o.version_id
                      AND k.class_name = coalesce(n.today, p.label))
    """,
    # The interval is Bonett and Price's for pairs, as vision.scores.transfer gives it.
    "compared": """
        SELECT version_id, other_id, subject, batch_id, images, correct, other_correct, gained,
               lost, (gained - lost)::double precision / images AS change,
               greatest(-1, more - fewer - half) AS change_low,
               least(1, more - fewer + half) AS change_high
        FROM (
            SELECT version_id, other_id, subject, batch_id, count(*) AS images,
                   count(*) FILTER (WHERE correct) AS correct,
                   count(*) FILTER (WHERE other_correct) AS other_correct,
                   count(*) FILTER (WHERE correct AND NOT other_correct) AS gained,
                   count(*) FILTER (WHERE other_correct AND NOT correct) AS lost
            FROM history.paired GROUP BY version_id, other_id, subject, batch_id) p
        CROSS JOIN LATERAL (SELECT (gained + 1) / (images + 2.0)::double precision AS more,
                                   (lost + 1) / (images + 2.0)::double precision AS fewer) s
        CROSS JOIN LATERAL (SELECT 1.959963984540054 * sqrt(
            (more + fewer - (more - fewer) * (more - fewer)) / (images + 2)) AS half) h
    """,
    "flips": """
        SELECT p.version_id, p.other_id, p.subject, p.batch_id, p.sha256,
               coalesce(b.key, o.key) AS key, coalesce(b.source_key, o.key) AS source_key, p.class_name, p.correct AS gained,
               p.predicted, p.confidence, p.other_predicted, p.other_confidence
        FROM history.paired p
        LEFT JOIN benchmark_images b ON b.sha256 = p.sha256
        LEFT JOIN LATERAL (SELECT key FROM objects o WHERE o.sha256 = p.sha256
                           AND o.state = 'accepted' AND o.gone_at IS NULL
                           ORDER BY o.id LIMIT 1) o ON true
        WHERE p.correct <> p.other_correct
    """,
    # --- use ------------------------------------------------------------------------------------
    "transactions": """
        SELECT t.id, t.at AS answered_at, t.client, t.version_id,
               coalesce(n.today, t.predicted) AS class_name, t.predicted AS called, t.confidence,
               t.shown, t.latency_seconds, t.sha256
        FROM transactions t LEFT JOIN class_names n ON n.name = t.predicted
    """,
    "usage": """
        SELECT day, client, version_id, transactions, shown,
               latency_sum / nullif(transactions, 0) AS mean_latency_seconds,
               latency_max AS max_latency_seconds,
               confidence_sum / nullif(transactions, 0) AS mean_confidence
        FROM usage_days
    """,
    "predicted": """
        SELECT p.day, p.version_id, coalesce(n.today, p.predicted) AS class_name,
               p.predicted AS called, p.transactions,
               p.confidence_sum / nullif(p.transactions, 0) AS mean_confidence
        FROM (SELECT day, version_id, predicted, sum(transactions)::bigint AS transactions,
                     sum(confidence_sum) AS confidence_sum
              FROM predicted_days GROUP BY day, version_id, predicted) p
        LEFT JOIN class_names n ON n.name = p.predicted
    """,
    # The random stream alone: each row stands for `weight` transactions.
    "reviewed": """
        SELECT r.transaction_id, r.at AS answered_at, (r.at AT TIME ZONE 'UTC')::date AS day,
               r.version_id, coalesce(n.today, r.predicted) AS class_name, r.predicted AS called,
               r.confidence::double precision AS confidence,
               1 / r.chance::double precision AS weight, r.right_share, r.people, r.bad_images,
               r.cannot_tell, r.blind
        FROM random_verdicts r LEFT JOIN class_names n ON n.name = r.predicted
    """,
    # --- what served, and what was learned from ---------------------------------------------------
    "live": """
        SELECT d.id AS deployment_id, d.version_id, d.purpose, d.kind, d.deployed_by, d.why,
               d.deployed_at AS live_from, lead(d.deployed_at) OVER log AS live_until,
               lag(d.version_id) OVER log AS previous_version_id, v.benchmark_version,
               e.accuracy AS benchmark_accuracy, v.shared_drop,
               ARRAY(SELECT c.name FROM checks c WHERE c.verdict_id = v.id
                     AND c.verdict = 'overridden' ORDER BY c.ordinal) AS overridden
        FROM deployments d JOIN verdicts v ON v.id = d.verdict_id
        LEFT JOIN evaluations e ON e.version_id = d.version_id AND e.subject = 'benchmark'
            AND e.benchmark_version = v.benchmark_version
        WINDOW log AS (ORDER BY d.id)
    """,
    "growth": """
        SELECT s.digest AS snapshot_digest, s.created_at AS frozen_at, v.version_id, v.purpose,
               s.cutoff, s.classes, s.images, l.under_cutoff
        FROM snapshots s JOIN history.snapshot_versions v ON v.snapshot_digest = s.digest
        CROSS JOIN LATERAL (SELECT count(*) AS under_cutoff FROM snapshot_classes c
                            WHERE c.snapshot_digest = s.digest AND c.lacks > 0) l
    """,
    "class_growth": """
        SELECT c.snapshot_digest, s.created_at AS frozen_at, v.version_id, v.purpose, s.cutoff,
               coalesce(n.today, c.class_name) AS class_name, c.class_name AS called,
               c.usable, c.lacks, c.train, c.validation, c.test
        FROM snapshots s JOIN history.snapshot_versions v ON v.snapshot_digest = s.digest
        JOIN snapshot_classes c ON c.snapshot_digest = s.digest
        LEFT JOIN class_names n ON n.name = c.class_name
    """,
}
# The first version that trained on each choice of library images; sets of pretraining are none.
SNAPSHOT_VERSIONS = """
    SELECT DISTINCT ON (snapshot_digest) snapshot_digest, id AS version_id, purpose FROM versions
    WHERE purpose <> 'pretrain' ORDER BY snapshot_digest, id
"""

# Wilson's 95% interval of a share of so many images, as vision.scores.interval gives it.
# OFFSET 0 here and below: or what was computed once would be put in wherever it is named, and
# planning took five times as long.
WILSON = """
    CREATE FUNCTION history.wilson(share double precision, images double precision)
    RETURNS TABLE (low double precision, high double precision) LANGUAGE sql IMMUTABLE AS $$
        SELECT CASE WHEN images > 0 AND share > 0 THEN greatest(0, middle - half)
                    WHEN images > 0 THEN 0 END,
               CASE WHEN images > 0 AND share < 1 THEN least(1, middle + half)
                    WHEN images > 0 THEN 1 END
        FROM (SELECT (share + squared / 2) / (1 + squared) AS middle,
                     1.959963984540054 / (1 + squared)
                     * sqrt(share * (1 - share) / nullif(images, 0)
                            + squared / (4 * nullif(images, 0))) AS half
              FROM (SELECT 3.8414588206941236 / nullif(images, 0) AS squared) s OFFSET 0) m
    $$
"""
# Hajek's ratio with its interval from the number of units and the sums of w, wy, w^2, w^2 y and
# w^2 y^2, as vision.scores.estimate gives it.
ESTIMATE = """
    CREATE FUNCTION history.estimate(
        reviewed bigint, w double precision, wy double precision, ww double precision, wwy double precision,
        wwyy double precision)
    RETURNS TABLE (share double precision, low double precision, high double precision)
    LANGUAGE sql IMMUTABLE AS $$
        SELECT e.share, i.low, i.high
        FROM (SELECT least(1, greatest(0, wy / nullif(w, 0))) AS share OFFSET 0) e
        CROSS JOIN LATERAL (SELECT wwyy - 2 * e.share * wwy + e.share * e.share * ww AS apart) a
        CROSS JOIN LATERAL history.wilson(e.share,
            CASE WHEN a.apart > 1e-9 * ww
                 THEN least(e.share * (1 - e.share) * w * w / a.apart, reviewed)
                 ELSE w * w / ww END) i
        WHERE w > 0
    $$
"""
SUMS = """
    count(right_share) AS reviewed, count(*) - count(right_share) AS undecided,
    sum(weight) FILTER (WHERE right_share IS NOT NULL) AS w, sum(weight * right_share) AS wy,
    sum(weight * weight) FILTER (WHERE right_share IS NOT NULL) AS ww,
    sum(weight * weight * right_share) AS wwy,
    sum(weight * weight * right_share * right_share) AS wwyy,
    sum(weight * confidence) FILTER (WHERE right_share IS NOT NULL) AS wc
"""
REVIEWED = """
    history.reviewed WHERE (since IS NULL OR answered_at >= since::timestamp AT TIME ZONE 'UTC')
    AND (until IS NULL OR answered_at < (until + 1)::timestamp AT TIME ZONE 'UTC')
"""
USED = """
    history.usage WHERE (since IS NULL OR day >= since) AND (until IS NULL OR day <= until)
"""
ESTIMATED = "LEFT JOIN LATERAL history.estimate(s.reviewed, s.w, s.wy, s.ww, s.wwy, s.wwyy) e ON true"
OF_VERSION = "(of_version IS NULL OR version_id = of_version)"
FIGURES = """
    reviewed bigint, undecided bigint, accuracy double precision, accuracy_low double precision,
    accuracy_high double precision, reviewed_confidence double precision
"""
TOLD = "s.reviewed, s.undecided, e.share, e.low, e.high, s.wc / s.w"
# Sums over a window that whoever asks chooses, days of UTC, both included: no view could be asked
# for that. Without a window they are views, too.
FUNCTIONS = {
    "in_use": (
        "since date DEFAULT NULL, until date DEFAULT NULL",
        f"""version_id bigint, purpose text, first_live timestamptz, transactions bigint,
            shown bigint, mean_confidence double precision, {FIGURES},
            test_accuracy double precision, test_low double precision, test_high double precision,
            benchmark_version integer, benchmark_accuracy double precision,
            benchmark_low double precision, benchmark_high double precision""",
        f"""
        SELECT version_id, l.purpose, l.first_live, coalesce(u.transactions, 0),
               coalesce(u.shown, 0), u.confidences / nullif(u.transactions, 0),
               coalesce(s.reviewed, 0), coalesce(s.undecided, 0), e.share, e.low, e.high,
               s.wc / s.w, t.accuracy, t.accuracy_low, t.accuracy_high, b.benchmark_version,
               b.accuracy, b.accuracy_low, b.accuracy_high
        FROM (SELECT version_id, sum(transactions)::bigint AS transactions,
                     sum(shown)::bigint AS shown,
                     sum(mean_confidence * transactions) AS confidences
              FROM {USED} GROUP BY version_id) u
        FULL JOIN (SELECT version_id, {SUMS} FROM {REVIEWED} GROUP BY version_id) s
            USING (version_id)
        {ESTIMATED}
        LEFT JOIN (SELECT DISTINCT ON (version_id) version_id, purpose, live_from AS first_live
                   FROM history.live ORDER BY version_id, deployment_id) l USING (version_id)
        LEFT JOIN (SELECT * FROM history.accuracy WHERE subject = 'test') t USING (version_id)
        LEFT JOIN (SELECT DISTINCT ON (version_id) * FROM history.accuracy
                   WHERE subject = 'benchmark'
                   ORDER BY version_id, benchmark_version DESC) b USING (version_id)
        """,  # noqa: S608  (constants)
    ),
    "in_use_classes": (
        "since date DEFAULT NULL, until date DEFAULT NULL, of_version bigint DEFAULT NULL",
        f"class_name text, {FIGURES}",
        f"""
        SELECT s.class_name, {TOLD}
        FROM (SELECT class_name, {SUMS} FROM {REVIEWED} AND {OF_VERSION} GROUP BY class_name) s
        {ESTIMATED}
        """,  # noqa: S608
    ),
    "in_use_bands": (
        "since date DEFAULT NULL, until date DEFAULT NULL, of_version bigint DEFAULT NULL",
        f"low double precision, high double precision, {FIGURES}",
        f"""
        SELECT s.band / 10, (s.band + 1) / 10, {TOLD}
        FROM (SELECT least(floor(confidence * 10), 9) AS band, {SUMS}
              FROM {REVIEWED} AND {OF_VERSION} GROUP BY 1) s
        {ESTIMATED}
        """,  # noqa: S608
    ),
    # gap: how much surer than right, in use and of the same versions on their test images.
    "calibration": (
        "since date DEFAULT NULL, until date DEFAULT NULL, of_version bigint DEFAULT NULL",
        f"""week date, versions bigint, transactions bigint, mean_confidence double precision,
            {FIGURES}, gap double precision, test_gap double precision""",
        f"""
        SELECT week, coalesce(u.versions, 0), coalesce(u.transactions, 0),
               u.confidences / nullif(u.transactions, 0), coalesce(s.reviewed, 0),
               coalesce(s.undecided, 0), e.share, e.low, e.high, s.wc / s.w, s.wc / s.w - e.share,
               u.test_gaps / nullif(u.tested, 0)
        FROM (SELECT date_trunc('week', d.day::timestamp)::date AS week,
                     count(DISTINCT d.version_id) AS versions,
                     sum(d.transactions)::bigint AS transactions,
                     sum(d.confidences) AS confidences,
                     sum(d.transactions) FILTER (WHERE g.gap IS NOT NULL) AS tested,
                     sum(d.transactions * g.gap) AS test_gaps
              FROM (SELECT day, version_id, sum(transactions) AS transactions,
                           sum(mean_confidence * transactions) AS confidences
                    FROM {USED} AND {OF_VERSION} GROUP BY day, version_id) d
              LEFT JOIN (SELECT version_id,
                                sum(images * (confidence - accuracy)) / sum(images) AS gap
                         FROM history.bands WHERE subject = 'test' GROUP BY version_id) g
                  ON g.version_id = d.version_id
              GROUP BY 1) u
        FULL JOIN (SELECT date_trunc('week', day::timestamp)::date AS week, {SUMS}
                   FROM {REVIEWED} AND {OF_VERSION} GROUP BY 1) s USING (week)
        {ESTIMATED}
        """,  # noqa: S608
    ),
}


def upgrade() -> None:
    op.create_table(
        "evaluation_groups",
        sa.Column("evaluation_id", sa.BigInteger(), nullable=False),
        sa.Column("class_name", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("sub_class", sa.Text(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("correct", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "correct BETWEEN 0 AND images", name=op.f("ck_evaluation_groups_correct_of_images")
        ),
        sa.ForeignKeyConstraint(
            ["evaluation_id"],
            ["evaluations.id"],
            name=op.f("fk_evaluation_groups_evaluation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "evaluation_id", "class_name", "origin", "sub_class", name=op.f("pk_evaluation_groups")
        ),
    )
    op.create_table(
        "evaluation_origins",
        sa.Column("evaluation_id", sa.BigInteger(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("correct", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "correct BETWEEN 0 AND images", name=op.f("ck_evaluation_origins_correct_of_images")
        ),
        sa.ForeignKeyConstraint(
            ["evaluation_id"],
            ["evaluations.id"],
            name=op.f("fk_evaluation_origins_evaluation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "origin", name=op.f("pk_evaluation_origins")),
    )
    # What was evaluated before counts by what the images are today, for want of anything better.
    op.execute(
        """
        INSERT INTO evaluation_groups
        SELECT a.evaluation_id, a.label, i.origin, i.sub_class, count(*),
               count(*) FILTER (WHERE a.correct)
        FROM answers a JOIN images i USING (sha256)
        GROUP BY a.evaluation_id, a.label, i.origin, i.sub_class
        """
    )
    op.execute(
        """
        INSERT INTO evaluation_origins
        SELECT evaluation_id, origin, sum(images), sum(correct) FROM evaluation_groups
        GROUP BY evaluation_id, origin
        """
    )
    op.create_index(
        "ix_snapshot_classes_lacking",
        "snapshot_classes",
        ["snapshot_digest"],
        postgresql_where=sa.text("lacks > 0"),
    )
    op.create_index(
        "ix_reviews_random",
        "reviews",
        ["transaction_at", "transaction_id", "version_id", "reviewed_by", sa.text("id DESC")],
        postgresql_include=["sha256", "predicted", "confidence", "verdict", "probability", "blind"],
        postgresql_where=sa.text("stream = 'random'"),
    )
    op.execute("CREATE SCHEMA history")
    op.execute(WILSON)
    op.execute(ESTIMATE)
    for name, query in {"snapshot_versions": SNAPSHOT_VERSIONS, **VIEWS}.items():
        op.execute(f"CREATE VIEW history.{name} AS {query}")
    for name, (arguments, columns, query) in FUNCTIONS.items():
        op.execute(
            f"CREATE FUNCTION history.{name}({arguments}) RETURNS TABLE ({columns}) "
            f"LANGUAGE sql STABLE AS $$ {query} $$"
        )
        op.execute(f"CREATE VIEW history.{name} AS SELECT * FROM history.{name}()")  # noqa: S608
    # Whoever draws charts reads these and nothing else: no key, no bytes, no table. Where roles are
    # made by somebody else (a managed Postgres), the administrator grants the same.
    op.execute(
        """
        DO $$
        BEGIN
            IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'regraft_reader') THEN
                CREATE ROLE regraft_reader NOLOGIN;
            END IF;
            GRANT USAGE ON SCHEMA history TO regraft_reader;
            GRANT SELECT ON ALL TABLES IN SCHEMA history TO regraft_reader;
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE NOTICE 'role regraft_reader was not made: see docs/history.md';
        END $$
        """
    )


def downgrade() -> None:
    op.execute("DROP SCHEMA history CASCADE")
    op.drop_index("ix_reviews_random", "reviews")
    op.drop_index("ix_snapshot_classes_lacking", "snapshot_classes")
    op.drop_table("evaluation_origins")
    op.drop_table("evaluation_groups")
