{{/* What all objects are called. */}}
{{- define "alloctrace.name" -}}
{{- printf "%s" .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "alloctrace.selector" -}}
app.kubernetes.io/name: alloctrace
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "alloctrace.labels" -}}
{{ include "alloctrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "alloctrace.secret" -}}
{{- .Values.token.existingSecret | default (printf "%s-token" (include "alloctrace.name" .)) }}
{{- end }}

{{/* The container, as a list of one: for the DaemonSet here, and for sidecars elsewhere. */}}
{{- define "alloctrace.container" -}}
- name: alloctrace
  image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    - serve
    - --all
    - --listen
    - 0.0.0.0:{{ .Values.port }}
    - --token-file
    - /etc/alloctrace/token/token
    - --history
    - /var/lib/alloctrace
    - --history-size
    - {{ .Values.persistence.size | quote }}
    - --history-age
    - {{ .Values.persistence.age | quote }}
    - --budget
    - {{ .Values.budget | quote }}
    {{- if not .Values.growth }}
    - --no-growth
    {{- end }}
    {{- if .Values.redact }}
    - --redact
    {{- end }}
    {{- range .Values.snapshotWhen }}
    - --snapshot-when
    - {{ . | quote }}
    {{- end }}
    {{- with .Values.push.otlp }}
    - --otlp
    - {{ . | quote }}
    {{- end }}
    {{- with .Values.push.pyroscope }}
    - --pyroscope
    - {{ . | quote }}
    {{- end }}
    {{- if .Values.push.tokenSecret }}
    - --push-token-file
    - /etc/alloctrace/push-token/token
    {{- end }}
    {{- range $name, $value := .Values.push.labels }}
    - --label
    - {{ printf "%s=%s" $name $value | quote }}
    {{- end }}
    {{- with .Values.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  env:
    - name: POD_NAME
      valueFrom:
        fieldRef:
          fieldPath: metadata.name
    - name: POD_UID
      valueFrom:
        fieldRef:
          fieldPath: metadata.uid
    - name: NAMESPACE
      valueFrom:
        fieldRef:
          fieldPath: metadata.namespace
    - name: NODE_NAME
      valueFrom:
        fieldRef:
          fieldPath: spec.nodeName
  ports:
    - name: alloctrace
      containerPort: {{ .Values.port }}
  securityContext:
    # Runtimes give no capabilities to a user who is not root.
    runAsUser: 0
    runAsGroup: 0
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    seccompProfile:
      type: RuntimeDefault
    {{- if eq .Values.mode "daemonset" }}
    # The profile of runtimes lets a container look at those of its own profile only.
    appArmorProfile:
      type: Unconfined
    {{- end }}
    capabilities:
      drop:
        - ALL
      add:
        - BPF
        - PERFMON
        - SYS_PTRACE
        - DAC_READ_SEARCH
  livenessProbe:
    exec:
      command: [/alloctrace, probe, /healthz, --address, "127.0.0.1:{{ .Values.port }}", --token-file, /etc/alloctrace/token/token]
    initialDelaySeconds: 20
    periodSeconds: 20
    failureThreshold: 6
  {{- if eq .Values.mode "daemonset" }}
  readinessProbe:
    exec:
      command: [/alloctrace, probe, /readyz, --address, "127.0.0.1:{{ .Values.port }}", --token-file, /etc/alloctrace/token/token]
    periodSeconds: 10
  {{- end }}
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
  volumeMounts:
    - name: alloctrace-history
      mountPath: /var/lib/alloctrace
    - name: alloctrace-cache
      mountPath: /var/cache/alloctrace
    - name: alloctrace-token
      mountPath: /etc/alloctrace/token
      readOnly: true
    {{- if .Values.push.tokenSecret }}
    - name: alloctrace-push-token
      mountPath: /etc/alloctrace/push-token
      readOnly: true
    {{- end }}
    {{- if ne .Values.mode "daemonset" }}
    - name: alloctrace-podinfo
      mountPath: /etc/podinfo
      readOnly: true
    {{- end }}
{{- end }}

{{/* What the container mounts. */}}
{{- define "alloctrace.volumes" -}}
{{- if and .Values.persistence.enabled (eq .Values.mode "daemonset") }}
- name: alloctrace-history
  hostPath:
    path: {{ .Values.persistence.hostPath | quote }}
    type: DirectoryOrCreate
{{- else }}
- name: alloctrace-history
  emptyDir: {}
{{- end }}
- name: alloctrace-cache
  emptyDir:
    sizeLimit: 64Mi
- name: alloctrace-token
  secret:
    secretName: {{ include "alloctrace.secret" . | quote }}
    defaultMode: 0400
{{- with .Values.push.tokenSecret }}
- name: alloctrace-push-token
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0400
{{- end }}
{{- if ne .Values.mode "daemonset" }}
- name: alloctrace-podinfo
  downwardAPI:
    items:
      - path: labels
        fieldRef:
          fieldPath: metadata.labels
{{- end }}
{{- end }}
