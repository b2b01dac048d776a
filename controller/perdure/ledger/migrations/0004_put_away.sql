-- A clean-up of a stopped runtime removed the snapshot that this archive is of: the data of that life is here. Who has
-- lost the node's journal since then knows by this that nothing is missing.
ALTER TABLE archives ADD COLUMN put_away_at timestamptz;
