"""The interior-point method of the engine `torch`: batched, dense, on any device.

`units` scales the numbers, `condensed` solves the linear systems, `steps` and its neighbours know the cones,
`embedding` takes a step, `interior` iterates, `newton` polishes; `active_set` finds what makes iterations unnecessary
for many a quadratic program; `method` puts them together.
"""
