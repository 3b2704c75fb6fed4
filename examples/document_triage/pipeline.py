"""What happens to a document: the graph.

The classes are wrapped here and written in modules of their own, so that a change in one model's module moves that
model and nothing else.
"""

import answers
import filetype
import language
import ocr
import sentiment

from servepipe import ServeInputNode, build, map, remote, switch

LANGUAGES = ["en", "de", "fr", "es", "it"]

FileType = remote(filetype.FileType)
# RapidOCR's detector remembers the image that it is working on: one at a time.
TextDetection = remote(ocr.TextDetection, max_ongoing_requests=1)
Orientation = remote(ocr.Orientation)
Recognition = remote(ocr.Recognition)
LanguageDetector = remote(language.LanguageDetector)
Sentiment = remote(sentiment.Sentiment)
plain_text = remote(answers.plain_text)
page_text = remote(answers.page_text)
report = remote(answers.report)
refuse = remote(answers.refuse)

with ServeInputNode(preprocessor=answers.body_of) as body:
    file_type = FileType.bind()
    text_detection = TextDetection.bind(short_side=480, box_score=0.3)
    orientation = Orientation.bind()
    recognition = Recognition.bind()
    language_detector = LanguageDetector.bind(LANGUAGES)
    sentiment_analysis = Sentiment.bind()

    found = file_type.identify.bind(body)

    page = text_detection.find.bind(body)
    lines = orientation.upright.bind(page["lines"])
    lines_read = map(recognition.read, lines)
    image_text = page_text.bind(lines_read)
    file_text = plain_text.bind(body)
    text = switch(found["kind"], {"image": image_text}, default=file_text)

    detected = language_detector.detect.bind(text)
    rated = sentiment_analysis.rate.bind(text)
    document = report.bind(found, text, detected, rated)
    refusal = refuse.bind(found)
    image = switch(page["readable"], {True: document}, default=refusal)
    answer = switch(found["kind"], {"image": image, "text": document}, default=refusal)

app = build(answer, name="document-triage")
