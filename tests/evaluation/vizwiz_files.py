"""VizWiz's files in small: three of its published records in its layout, and one of yes/no."""

import json

RECORDS = [
    {
        "image": "VizWiz_val_00000001.jpg",
        "question": "Can you tell me what this medicine is please?",
        "answers": [
            {"answer": "no", "answer_confidence": "yes"},
            {"answer": "unanswerable", "answer_confidence": "yes"},
            {"answer": "night time", "answer_confidence": "maybe"},
            {"answer": "unanswerable", "answer_confidence": "yes"},
            {"answer": "night time", "answer_confidence": "maybe"},
            {"answer": "night time cold medicine", "answer_confidence": "maybe"},
            {"answer": "night time", "answer_confidence": "maybe"},
            {"answer": "night time", "answer_confidence": "maybe"},
            {"answer": "night time", "answer_confidence": "maybe"},
            {"answer": "night time medicine", "answer_confidence": "yes"},
        ],
        "answer_type": "other",
        "answerable": 1,
    },
    {
        "image": "VizWiz_train_00000000.jpg",
        "question": "What's the name of this product?",
        "answers": [{"answer": "basil leaves", "answer_confidence": "yes"}] * 7
        + [{"answer": "basil", "answer_confidence": "maybe"}] * 3,
        "answer_type": "other",
        "answerable": 1,
    },
    {
        "image": "VizWiz_val_00000007.jpg",
        "question": "What is this?",
        "answers": [{"answer": "unanswerable", "answer_confidence": "yes"}] * 8
        + [{"answer": "unsuitable image", "answer_confidence": "yes"}] * 2,
        "answer_type": "unanswerable",
        "answerable": 0,
    },
    {
        "image": "VizWiz_val_00000009.jpg",
        "question": "Is the light on?",
        "answers": [{"answer": "yes", "answer_confidence": "yes"}] * 10,
        "answer_type": "yes/no",
        "answerable": 1,
    },
]


def write_annotations(folder, records=RECORDS):
    path = folder / "val.json"
    path.write_text(records if isinstance(records, str) else json.dumps(records))
    return path


def write_images(folder, records=RECORDS):
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for record in records:
        (images / record["image"]).write_bytes(b"x")
    return images
