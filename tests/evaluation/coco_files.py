"""COCO's annotation files and the published list of synonyms in small, in their own layouts."""

import json

CATEGORIES = {
    "person": 1,
    "airplane": 5,
    "train": 7,
    "traffic light": 10,
    "bird": 16,
    "cat": 17,
    "dog": 18,
    "tie": 32,
    "skis": 35,
    "hot dog": 58,
    "chair": 62,
    "dining table": 67,
    "toilet": 70,
    "oven": 79,
}
# As published: the object first, some words twice, stray spaces.
SYNONYMS = """\
person, girl, boy, man, woman, kid, child, baby, adult, passenger, policeman, man
airplane, jetliner, plane,  air plane, jet
train, locomotive
traffic light, street light, stop light
bird, goose
cat, kitten
dog, puppy
tie, bow, bow tie
skis, ski
hot dog
chair, seat, stool
dining table, table, desk
toilet, urinal, toilet
oven, stove, stove top oven
"""


def write_coco(folder, images, captions=(), name="val2014"):
    """`images` maps a file name to its id and the categories of its annotations, `captions` are (image id, text)."""
    annotations = [
        {
            "segmentation": [[239.97, 260.24, 222.04, 270.49, 199.84, 253.41]],
            "area": 2765.1486500000005,
            "iscrowd": number % 2,
            "image_id": image_id,
            "bbox": [199.84, 200.46, 77.71, 70.88],
            "category_id": CATEGORIES[category],
            "id": number,
        }
        for number, (image_id, category) in enumerate(
            (image_id, category) for image_id, categories in images.values() for category in categories
        )
    ]
    shared = {
        "info": {"description": "COCO 2014 Dataset", "year": 2014},
        "images": [
            {"license": 3, "file_name": file_name, "height": 427, "width": 640, "id": image_id}
            for file_name, (image_id, _) in images.items()
        ],
        "licenses": [{"id": 3, "name": "Attribution-NonCommercial-NoDerivs License"}],
    }
    categories = [{"supercategory": "any", "id": number, "name": name} for name, number in CATEGORIES.items()]
    instances = folder / f"instances_{name}.json"
    instances.write_text(json.dumps(shared | {"annotations": annotations, "categories": categories}))
    texts = [{"image_id": image, "id": number, "caption": text} for number, (image, text) in enumerate(captions)]
    (folder / f"captions_{name}.json").write_text(json.dumps(shared | {"annotations": texts}))
    (folder / "synonyms.txt").write_text(SYNONYMS)
    return instances
