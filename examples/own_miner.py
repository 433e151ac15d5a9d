"""A miner of one's own, and the shop trained with it; docs/miners.md goes through it."""

import tensorflow as tf

import tf_dynidx as tdx


@tf.keras.utils.register_keras_serializable("shop")
class Recent(tdx.miners.Miner):
    """Draws from the positives of the last steps, each target as often as it is among them."""

    def __init__(self, num_negatives=2, memory=1024, seed=0, name=None):
        super().__init__(num_negatives, seed, name)
        self.memory = memory

    def make_state(self, corpus, encode_corpus):
        rows = tf.range(self.memory, dtype=tf.int64) % corpus.size
        self.recent = tf.Variable(rows, trainable=False, name="recent")

    def mine(self, queries, beta, positives):
        shape = [tf.shape(queries)[0], self.num_negatives]
        seed = self.next_seed()
        places = tf.random.stateless_uniform(shape, seed, 0, self.memory, tf.int32, alg="philox")
        return tf.cast(tf.gather(self.recent, places), tf.int32), None

    def log_prob(self, rows, queries, beta, positives, drawn):
        same = tf.cast(rows, tf.int64)[:, None] == self.recent
        times = tf.math.count_nonzero(same, axis=1, dtype=tf.float32)
        return tf.math.log(times / self.memory)[None]

    def observe_positives(self, rows, weights):
        rows = tf.where(weights > 0, tf.cast(rows, tf.int64), self.recent[-1])
        self.recent.assign(tf.concat([rows, self.recent], axis=0)[: self.memory])

    def get_config(self):
        return super().get_config() | {"memory": self.memory}


def main():
    """Trains the shop's model with it."""
    from shop import ITEMS, USERS, generate, precision, tower

    items, (user, item) = generate()
    user_tower, item_tower = tower(USERS), tower(ITEMS)
    model = tdx.DualEncoder(user_tower, item_tower, tdx.TargetCorpus(items), miner=Recent())
    model.compile(optimizer=tf.keras.optimizers.Adam(0.02))
    dataset = tf.data.Dataset.from_tensor_slices((user, item.astype("int32")))
    model.fit(dataset.shuffle(len(user)).batch(256, drop_remainder=True), epochs=3, verbose=2)
    print("precision", precision(user_tower, item_tower, (user, item)))


if __name__ == "__main__":
    main()
