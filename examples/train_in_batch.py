"""Trains an existing Keras two-tower model with in-batch negatives, as train_mined.py does not."""

import tensorflow as tf
from shop import ITEMS, USERS, TwoTower, generate, precision, tower

items, (user, item) = generate()
user_tower, item_tower = tower(USERS), tower(ITEMS)
model = TwoTower(user_tower, item_tower)
model.compile(optimizer=tf.keras.optimizers.Adam(0.02))
dataset = tf.data.Dataset.from_tensor_slices(((user, items[item]),))
model.fit(dataset.shuffle(len(user)).batch(256, drop_remainder=True), epochs=3, verbose=2)
print("precision", precision(user_tower, item_tower, (user, item)))
