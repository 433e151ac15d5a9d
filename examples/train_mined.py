"""Trains an existing Keras two-tower model with mined negatives; train_in_batch.py has it as it was."""

import tensorflow as tf
from shop import ITEMS, USERS, generate, precision, tower

import tf_dynidx as tdx

items, (user, item) = generate()
user_tower, item_tower = tower(USERS), tower(ITEMS)
model = tdx.DualEncoder(user_tower, item_tower, tdx.TargetCorpus(items))
model.compile(optimizer=tf.keras.optimizers.Adam(0.02))
dataset = tf.data.Dataset.from_tensor_slices((user, item.astype("int32")))
model.fit(dataset.shuffle(len(user)).batch(256, drop_remainder=True), epochs=3, verbose=2)
print("precision", precision(user_tower, item_tower, (user, item)))
