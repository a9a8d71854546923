# The web app with the shipped detector, without TensorFlow and so without heatmaps. See docs/web.md.
#   docker build -t fakereal .
#   docker run --rm -p 127.0.0.1:8000:8000 fakereal         then open http://127.0.0.1:8000/
FROM python:3.12-slim

WORKDIR /app
COPY requirements-predict.txt ./
RUN pip install --no-cache-dir -r requirements-predict.txt
COPY LICENSE NOTICE predict_and_save_json.py ./
COPY fakereal/ fakereal/
COPY models/pretrained.tflite models/pretrained.tflite.json models/MODEL_CARD.md models/
RUN python -m compileall -q fakereal && useradd --system --uid 10001 fakereal

ENV PYTHONPATH=/app
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "fakereal"]
CMD ["web", "--host", "0.0.0.0"]
