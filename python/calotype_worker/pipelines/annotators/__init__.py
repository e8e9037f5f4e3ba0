"""Networks that make the picture of a control unit out of a photograph, loaded like models.

preprocessor   what the loop holds; finds the network in its files
depth          DPT, Depth Anything, ZoeDepth: depth, and normals from it
hed            ControlNet's HED: soft edges
pose           ViTPose and a detector of people; `skeleton` draws what they found
seeing         how a network wants to see a picture
stored         transformers' modules and the names in their files
"""
